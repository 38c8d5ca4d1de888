// What a backend in Go writes against the client of oapi-codegen.
package main

import (
	"context"
	"fmt"
	"net/http"

	. "compat/checks"
	"compat/oapi-codegen/api"
)

var ctx = context.Background()

func client(authorization string) *api.ClientWithResponses {
	key := func(_ context.Context, request *http.Request) error {
		request.Header.Set("Authorization", authorization)
		return nil
	}
	made, err := api.NewClientWithResponses(URL, api.WithRequestEditorFn(key))
	if err != nil {
		panic(err)
	}
	return made
}

var reads = client("Bearer " + Token)

func setName(password string) (*api.CallbackAfterSetGroupMemberInfoResponse, error) {
	name := "Ann"
	return client(Basic(password)).CallbackAfterSetGroupMemberInfoWithResponse(ctx, api.SetGroupMemberInfo{
		CallbackCommand: "callbackAfterSetGroupMemberInfoCommand",
		GroupID:         Group,
		UserID:          "x+y",
		NickName:        &name,
	})
}

func members(params api.ListMembersParams) (*api.MemberPage, error) {
	answer, err := reads.ListMembersWithResponse(ctx, Group, &params)
	if err == nil && answer.JSON200 == nil {
		err = fmt.Errorf("answered %s", answer.Status())
	}
	if err != nil {
		return &api.MemberPage{}, err
	}
	return answer.JSON200, nil
}

func groupsOf(user string) (*api.MembershipPage, error) {
	answer, err := reads.ListGroupsOfUserWithResponse(ctx, user, &api.ListGroupsOfUserParams{})
	if err == nil && answer.JSON200 == nil {
		err = fmt.Errorf("answered %s", answer.Status())
	}
	if err != nil {
		return nil, err
	}
	return answer.JSON200, nil
}

func main() {
	Check("callback", func() error {
		answer, err := setName(Password)
		if err != nil || answer.JSON200 == nil {
			return fmt.Errorf("answered %v %v", answer, err)
		}
		return Equal(answer.JSON200.ActionCode, int32(0))
	})
	Check("refused", func() error {
		answer, err := setName("wrong")
		if err != nil || answer.JSON401 == nil {
			return fmt.Errorf("answered %v %v", answer, err)
		}
		return Equal(answer.JSON401.ErrCode, int32(5111))
	})
	Check("ids", func() error {
		for _, user := range []string{"50%", "x+y"} {
			answer, err := reads.GetMemberWithResponse(ctx, Group, user, &api.GetMemberParams{})
			if err != nil || answer.JSON200 == nil {
				return fmt.Errorf("answered %v %v", answer, err)
			}
			if err := Equal(answer.JSON200.UserID, user); err != nil {
				return err
			}
			if user == "x+y" {
				ann := answer.JSON200
				return First(Equal(*ann.NickName, "Ann"), Equal(ann.DisplayFaceURL == nil, true))
			}
		}
		return nil
	})
	Check("unchanged", func() error {
		answer, err := reads.GetMemberWithResponse(ctx, Group, "x+y", &api.GetMemberParams{})
		if err != nil {
			return err
		}
		etag := answer.HTTPResponse.Header.Get("ETag")
		answer, err = reads.GetMemberWithResponse(ctx, Group, "x+y", &api.GetMemberParams{IfNoneMatch: &etag})
		return First(err, Equal(answer.StatusCode(), 304))
	})
	Check("problem", func() error {
		answer, err := reads.GetGroupWithResponse(ctx, "none")
		if err != nil || answer.ApplicationproblemJSON404 == nil {
			return fmt.Errorf("answered %v %v", answer, err)
		}
		return Equal(answer.ApplicationproblemJSON404.Code, "group_unknown")
	})
	Check("pages", func() error {
		var users []string
		limit := uint32(1)
		params := api.ListMembersParams{Limit: &limit}
		for {
			page, err := members(params)
			if err := First(err, Equal(page.GroupID, Group)); err != nil {
				return err
			}
			for _, member := range page.Members {
				users = append(users, member.UserID)
			}
			if params.Cursor = page.NextCursor; params.Cursor == nil {
				return Equal(users, []string{"..", "50%", "x+y"})
			}
		}
	})
	Check("filter", func() error {
		some, err := members(api.ListMembersParams{UserID: &[]string{"x+y", "50%"}})
		if err := First(err, Equal(len(some.Members), 2)); err != nil {
			return err
		}
		state := api.ListMembersParamsState("all")
		all, err := members(api.ListMembersParams{State: &state})
		return First(err, Equal(len(all.Members), 4))
	})
	Check("query", func() error {
		pairs := []api.MembershipPair{{GroupID: Group, UserID: ".."}, {GroupID: Group, UserID: "stranger"}}
		answer, err := reads.QueryMembershipsWithResponse(ctx, api.MembershipQuery{Pairs: pairs})
		if err != nil || answer.JSON200 == nil {
			return fmt.Errorf("answered %v %v", answer, err)
		}
		found := answer.JSON200.Memberships
		return First(
			Equal([]bool{found[0].IsMember, found[1].IsMember}, []bool{true, false}),
			Equal(found[0].Member.UserID, ".."),
			Equal(found[1].Member == nil, true),
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
		answer, err := reads.DriftWithResponse(ctx)
		if err != nil || answer.JSON200 == nil {
			return fmt.Errorf("answered %v %v", answer, err)
		}
		return Equal(answer.JSON200.LastRun == nil, true)
	})
	page, err := groupsOf("..")
	switch {
	case err != nil:
		fmt.Println("dots", err)
	case page.UserID == "..":
		fmt.Println("dots sent")
	default:
		fmt.Println("dots other")
	}
}
