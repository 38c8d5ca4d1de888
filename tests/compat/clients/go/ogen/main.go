// What a backend in Go writes against the client of ogen.
package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	. "compat/checks"
	"compat/ogen/api"
)

var ctx = context.Background()

type keys struct{ password, token string }

func (k keys) ApiToken(context.Context, api.OperationName) (api.ApiToken, error) {
	return api.ApiToken{Token: k.token}, nil
}

func (k keys) CallbackPassword(context.Context, api.OperationName) (api.CallbackPassword, error) {
	return api.CallbackPassword{Username: "openim", Password: k.password}, nil
}

func client(password string) *api.Client {
	made, err := api.NewClient(URL, keys{password, Token})
	if err != nil {
		panic(err)
	}
	return made
}

func other(answer any, err error) error {
	return errors.Join(fmt.Errorf("answered %T", answer), err)
}

func setName(password string) (api.CallbackAfterSetGroupMemberInfoRes, error) {
	change := &api.SetGroupMemberInfo{
		CallbackCommand: api.SetGroupMemberInfoCallbackCommandCallbackAfterSetGroupMemberInfoCommand,
		GroupID:         Group,
		UserID:          "x+y",
		NickName:        api.NewOptNilString("Ann"),
	}
	return client(password).CallbackAfterSetGroupMemberInfo(ctx, change)
}

func member(user string, etag api.OptString) (api.GetMemberRes, error) {
	params := api.GetMemberParams{GroupID: Group, UserID: user, IfNoneMatch: etag}
	return client(Password).GetMember(ctx, params)
}

func members(params api.ListMembersParams) (*api.MemberPage, error) {
	params.GroupID = Group
	answer, err := client(Password).ListMembers(ctx, params)
	if page, ok := answer.(*api.MemberPage); ok {
		return page, err
	}
	return &api.MemberPage{}, other(answer, err)
}

func groupsOf(user string) (*api.MembershipPage, error) {
	answer, err := client(Password).ListGroupsOfUser(ctx, api.ListGroupsOfUserParams{UserID: user})
	if page, ok := answer.(*api.MembershipPage); ok {
		return page, err
	}
	return &api.MembershipPage{}, other(answer, err)
}

func main() {
	Check("callback", func() error {
		answer, err := setName(Password)
		if reply, ok := answer.(*api.CallbackAfterSetGroupMemberInfoOK); ok {
			return Equal(reply.ActionCode, int32(0))
		}
		return other(answer, err)
	})
	Check("refused", func() error {
		answer, err := setName("wrong")
		if reply, ok := answer.(*api.CallbackReplyHeaders); ok {
			return Equal(reply.Response.ErrCode, int32(5111))
		}
		return other(answer, err)
	})
	Check("ids", func() error {
		for _, user := range []string{"50%", "x+y"} {
			answer, err := member(user, api.OptString{})
			found, ok := answer.(*api.MemberHeaders)
			if !ok {
				return other(answer, err)
			}
			if err := Equal(found.Response.UserID, user); err != nil {
				return err
			}
			if user == "x+y" {
				ann := found.Response
				return First(
					Equal(ann.NickName.Value, "Ann"),
					Equal(ann.DisplayFaceURL.Null, true),
					Equal(ann.JoinSource.Null, true),
				)
			}
		}
		return nil
	})
	Check("unchanged", func() error {
		answer, err := member("x+y", api.OptString{})
		found, ok := answer.(*api.MemberHeaders)
		if !ok {
			return other(answer, err)
		}
		answer, err = member("x+y", api.NewOptString(found.ETag))
		if _, ok := answer.(*api.GetMemberNotModified); ok {
			return nil
		}
		return other(answer, err)
	})
	Check("problem", func() error {
		answer, err := client(Password).GetGroup(ctx, api.GetGroupParams{GroupID: "none"})
		if problem, ok := answer.(*api.GetGroupNotFound); ok {
			return Equal(problem.Code, "group_unknown")
		}
		return other(answer, err)
	})
	Check("pages", func() error {
		var users []string
		params := api.ListMembersParams{Limit: api.NewOptUint32(1)}
		for {
			page, err := members(params)
			if err := First(err, Equal(page.GroupID, Group)); err != nil {
				return err
			}
			for _, member := range page.Members {
				users = append(users, member.UserID)
			}
			if page.NextCursor.Null {
				return Equal(users, []string{"..", "50%", "x+y"})
			}
			params.Cursor = api.NewOptString(page.NextCursor.Value)
		}
	})
	Check("filter", func() error {
		some, err := members(api.ListMembersParams{UserID: []string{"x+y", "50%"}})
		if err := First(err, Equal(len(some.Members), 2)); err != nil {
			return err
		}
		state := api.NewOptListMembersState(api.ListMembersStateAll)
		all, err := members(api.ListMembersParams{State: state})
		return First(err, Equal(len(all.Members), 4))
	})
	Check("query", func() error {
		pairs := []api.MembershipPair{{GroupID: Group, UserID: ".."}, {GroupID: Group, UserID: "stranger"}}
		answer, err := client(Password).QueryMemberships(ctx, &api.MembershipQuery{Pairs: pairs})
		answers, ok := answer.(*api.MembershipAnswers)
		if !ok {
			return other(answer, err)
		}
		found := answers.Memberships
		return First(
			Equal([]bool{found[0].IsMember, found[1].IsMember}, []bool{true, false}),
			Equal(found[0].Member.Value.UserID, ".."),
			Equal(found[1].Member.Null, true),
		)
	})
	Check("groups", func() error {
		page, err := groupsOf("50%")
		if err != nil {
			return err
		}
		return First(Equal(page.UserID, "50%"), Equal(page.Groups[0].GroupID, Group))
	})
	Check("drift", func() error {
		answer, err := client(Password).Drift(ctx)
		if drift, ok := answer.(*api.Drift); ok {
			return Equal(drift.LastRun.Null, true)
		}
		return other(answer, err)
	})
	page, err := groupsOf("..")
	switch {
	case err != nil && strings.Contains(err.Error(), "decode response"):
		fmt.Println("dots refused")
	case err != nil:
		fmt.Println("dots", err)
	case page.UserID == "..":
		fmt.Println("dots sent")
	default:
		fmt.Println("dots other")
	}
}
