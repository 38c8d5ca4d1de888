// What a backend in Go writes against the client of openapi-generator.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	. "compat/checks"
	"compat/openapi-generator/api"
)

var ctx = context.Background()

func client(authorization string) *api.APIClient {
	settings := api.NewConfiguration()
	settings.Servers = api.ServerConfigurations{{URL: URL}}
	settings.HTTPClient = &http.Client{Transport: Authorized(authorization)}
	return api.NewAPIClient(settings)
}

var reads = client("Bearer " + Token).ReadsAPI

func setName(password string) (*api.CallbackReply, error) {
	change := api.NewSetGroupMemberInfo("callbackAfterSetGroupMemberInfoCommand", Group, "x+y")
	change.SetNickName("Ann")
	callbacks := client(Basic(password)).CallbacksAPI
	reply, _, err := callbacks.CallbackAfterSetGroupMemberInfo(ctx).SetGroupMemberInfo(*change).Execute()
	return reply, err
}

func main() {
	Check("callback", func() error {
		reply, err := setName(Password)
		if err != nil {
			return err
		}
		return Equal(reply.ActionCode, int32(0))
	})
	Check("refused", func() error {
		_, err := setName("wrong")
		var failed *api.GenericOpenAPIError
		if !errors.As(err, &failed) {
			return fmt.Errorf("no error of the client: %v", err)
		}
		reply, ok := failed.Model().(api.CallbackReply)
		if !ok {
			return fmt.Errorf("%T: %s", failed.Model(), failed.Body())
		}
		return Equal(reply.ErrCode, int32(5111))
	})
	Check("ids", func() error {
		for _, user := range []string{"50%", "x+y"} {
			found, _, err := reads.GetMember(ctx, Group, user).Execute()
			if err != nil {
				return err
			}
			if err := Equal(found.UserID, user); err != nil {
				return err
			}
			if user == "x+y" {
				return First(Equal(*found.NickName.Get(), "Ann"), Equal(found.DisplayFaceURL.Get() == nil, true))
			}
		}
		return nil
	})
	Check("unchanged", func() error {
		_, answer, err := reads.GetMember(ctx, Group, "x+y").Execute()
		if err != nil {
			return err
		}
		// An error of the client; the answer says what it is.
		_, answer, _ = reads.GetMember(ctx, Group, "x+y").IfNoneMatch(answer.Header.Get("ETag")).Execute()
		return Equal(answer.StatusCode, 304)
	})
	Check("problem", func() error {
		_, _, err := reads.GetGroup(ctx, "none").Execute()
		var failed *api.GenericOpenAPIError
		if !errors.As(err, &failed) {
			return fmt.Errorf("no error of the client: %v", err)
		}
		problem, ok := failed.Model().(api.Problem)
		if !ok {
			return fmt.Errorf("%T: %s", failed.Model(), failed.Body())
		}
		return Equal(problem.Code, "group_unknown")
	})
	Check("pages", func() error {
		var users []string
		request := reads.ListMembers(ctx, Group).Limit(1)
		for {
			page, _, err := request.Execute()
			if err != nil {
				return err
			}
			if err := Equal(page.GroupID, Group); err != nil {
				return err
			}
			for _, member := range page.Members {
				users = append(users, member.UserID)
			}
			cursor := page.NextCursor.Get()
			if cursor == nil {
				return Equal(users, []string{"..", "50%", "x+y"})
			}
			request = request.Cursor(*cursor)
		}
	})
	Check("filter", func() error {
		some, _, err := reads.ListMembers(ctx, Group).UserID([]string{"x+y", "50%"}).Execute()
		if err != nil {
			return err
		}
		all, _, err := reads.ListMembers(ctx, Group).State("all").Execute()
		if err != nil {
			return err
		}
		return Equal([]int{len(some.Members), len(all.Members)}, []int{2, 4})
	})
	Check("query", func() error {
		pairs := []api.MembershipPair{*api.NewMembershipPair(Group, ".."), *api.NewMembershipPair(Group, "stranger")}
		answer, _, err := reads.QueryMemberships(ctx).MembershipQuery(*api.NewMembershipQuery(pairs)).Execute()
		if err != nil {
			return err
		}
		found := answer.Memberships
		return First(
			Equal([]bool{found[0].IsMember, found[1].IsMember}, []bool{true, false}),
			Equal(found[0].Member.Get().UserID, ".."),
			Equal(found[1].Member.Get() == nil, true),
		)
	})
	Check("groups", func() error {
		page, _, err := reads.ListGroupsOfUser(ctx, "50%").Execute()
		if err != nil {
			return err
		}
		return First(Equal(page.UserID, "50%"), Equal(page.Groups[0].GroupID, Group))
	})
	Check("drift", func() error {
		drift, _, err := client("Bearer " + Token).OperationsAPI.Drift(ctx).Execute()
		if err != nil {
			return err
		}
		return Equal(drift.LastRun.Get() == nil, true)
	})
	page, _, err := reads.ListGroupsOfUser(ctx, "..").Execute()
	switch {
	case err != nil && (strings.Contains(err.Error(), "required property") || strings.Contains(err.Error(), "unknown field")):
		fmt.Println("dots refused")
	case err != nil:
		fmt.Println("dots", err)
	case page.UserID == "..":
		fmt.Println("dots sent")
	default:
		fmt.Println("dots other")
	}
}
