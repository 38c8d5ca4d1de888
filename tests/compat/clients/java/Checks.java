package compat;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.Objects;
import org.openapitools.client.api.ReadsApi;
import org.openapitools.client.model.CallbackReply;
import org.openapitools.client.model.Member;
import org.openapitools.client.model.MemberPage;
import org.openapitools.client.model.Membership;
import org.openapitools.client.model.MembershipPage;
import org.openapitools.client.model.MembershipPair;
import org.openapitools.client.model.MembershipQuery;
import org.openapitools.client.model.SetGroupMemberInfo;

/**
 * What a backend in Java writes against the client of openapi-generator, whose libraries have the same
 * operations; what differs is in {@code Library}. A line for each check: "ok" or what was found instead.
 * It is Java 8, which most of the libraries are compiled as.
 */
public final class Checks {
  static final String GROUP = "a/b c";

  interface Body {
    void run() throws Exception;
  }

  static void check(String name, Body body) {
    String result = "ok";
    try {
      body.run();
    } catch (Exception error) {
      result = String.join(" ", error.toString().split("\\s+"));
    }
    System.out.println(name + " " + result);
  }

  static void equal(Object found, Object expected) {
    if (!Objects.equals(found, expected)) {
      throw new IllegalStateException("expected " + expected + ", found " + found);
    }
  }

  static String basic(String password) {
    return "Basic " + Base64.getEncoder().encodeToString(("openim:" + password).getBytes());
  }

  public static void main(String[] given) {
    String url = given[0], password = given[1], bearer = "Bearer " + given[2];
    ReadsApi reads = Library.reads(url, bearer);
    SetGroupMemberInfo change =
        new SetGroupMemberInfo()
            .callbackCommand(
                SetGroupMemberInfo.CallbackCommandEnum
                    .CALLBACK_AFTER_SET_GROUP_MEMBER_INFO_COMMAND)
            .groupID(GROUP)
            .userID("x+y")
            .nickName("Ann");

    check(
        "callback",
        () -> {
          CallbackReply reply =
              Library.callbacks(url, basic(password)).callbackAfterSetGroupMemberInfo(change);
          equal(reply.getActionCode(), 0);
        });
    check(
        "refused",
        () -> {
          try {
            Library.callbacks(url, basic("wrong")).callbackAfterSetGroupMemberInfo(change);
          } catch (Exception refused) {
            equal(Library.status(refused), 401);
            equal(Library.body(refused).contains("\"errCode\":5111"), true);
            return;
          }
          throw new IllegalStateException("taken");
        });
    check(
        "ids",
        () -> {
          for (String user : Arrays.asList("x+y", "50%")) {
            equal(reads.getMember(GROUP, user, null).getUserID(), user);
          }
          Member ann = reads.getMember(GROUP, "x+y", null);
          equal(ann.getNickName(), "Ann");
          equal(ann.getDisplayFaceURL(), null);
          equal(ann.getUpdatedAt() != null, true);
        });
    check(
        "unchanged",
        () -> {
          String etag = Library.member(reads, GROUP, "x+y", null)[1];
          equal(Library.member(reads, GROUP, "x+y", etag)[0], "304");
        });
    check(
        "problem",
        () -> {
          try {
            reads.getGroup("none");
          } catch (Exception problem) {
            equal(Library.status(problem), 404);
            equal(Library.body(problem).contains("\"code\":\"group_unknown\""), true);
            return;
          }
          throw new IllegalStateException("there is such a group");
        });
    check(
        "pages",
        () -> {
          List<String> users = new ArrayList<>();
          String cursor = null;
          do {
            MemberPage page = reads.listMembers(GROUP, null, null, null, 1, cursor);
            equal(page.getGroupID(), GROUP);
            page.getMembers().forEach(member -> users.add(member.getUserID()));
            cursor = page.getNextCursor();
          } while (cursor != null);
          equal(users, Arrays.asList("..", "50%", "x+y"));
        });
    check(
        "filter",
        () -> {
          List<String> wanted = Arrays.asList("x+y", "50%");
          equal(reads.listMembers(GROUP, null, null, wanted, null, null).getMembers().size(), 2);
          equal(reads.listMembers(GROUP, "all", null, null, null, null).getMembers().size(), 4);
        });
    check(
        "query",
        () -> {
          MembershipQuery query = new MembershipQuery();
          for (String user : Arrays.asList("..", "stranger")) {
            query.addPairsItem(new MembershipPair().groupID(GROUP).userID(user));
          }
          List<Membership> found = reads.queryMemberships(query).getMemberships();
          equal(Arrays.asList(found.get(0).getIsMember(), found.get(1).getIsMember()), Arrays.asList(true, false));
          equal(found.get(0).getMember().getUserID(), "..");
          equal(found.get(1).getMember(), null);
        });
    check(
        "groups",
        () -> {
          MembershipPage page = reads.listGroupsOfUser("50%", null, null);
          equal(page.getUserID(), "50%");
          equal(page.getGroups().get(0).getGroupID(), GROUP);
        });
    check("drift", () -> equal(Library.operations(url, bearer).drift().getLastRun(), null));
    try {
      String user = reads.listGroupsOfUser("..", null, null).getUserID();
      System.out.println("dots " + ("..".equals(user) ? "sent" : "other"));
    } catch (IllegalArgumentException refused) {
      System.out.println("dots refused");
    } catch (Exception failed) {
      System.out.println("dots " + failed.toString().replace('\n', ' '));
    }
    // Some libraries keep threads for connections.
    System.exit(0);
  }
}
