package kafka

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/transporttest"
)

// TestSuite runs the suite that every transport passes, with each group protocol.
func TestSuite(t *testing.T) {
	for _, protocol := range []string{"classic", "consumer"} {
		t.Run(protocol, func(t *testing.T) { runSuite(t, protocol) })
	}
}

func runSuite(t *testing.T, protocol string) {
	brokers := real(t)
	cfg := func(t testing.TB) Config {
		c := config(t, brokers)
		c.Protocol, c.Delays = protocol, true
		return c
	}
	run := unique(t)
	group := func(t testing.TB) string { // the transports of one case share a group
		return fmt.Sprintf("%s-%x", run, sha256.Sum256([]byte(t.Name())))
	}
	h := transporttest.Harness{
		Watermark: true,
		Lease:     500 * time.Millisecond, // there is none: a member holds its messages for as long as it lives
		Open: func(t testing.TB) transport.Transport {
			c := cfg(t)
			c.Group = group(t)
			tr, err := Open(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			return tr
		},
		OpenCuttable: func(t testing.TB) (transport.Transport, func(time.Duration)) {
			net := newCut()
			c := cfg(t)
			c.Group = group(t)
			c.Dial = net.dial
			tr, err := Open(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			return tr, func(d time.Duration) {
				net.cut()
				time.Sleep(d)
				net.mend()
			}
		},
		NewSubject: func(t testing.TB) string { return unique(t) },
		RawPublish: func(t testing.TB, subject string, body []byte) {
			cl, _ := admin(t, brokers)
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: subject, Value: body}).FirstErr(); err != nil {
				t.Fatalf("produce: %v", err)
			}
		},
		Trim: func(t testing.TB, subject string, keep int) {
			_, adm := admin(t, brokers)
			ends, err := adm.ListEndOffsets(t.Context(), subject)
			if err != nil {
				t.Fatal(err)
			}
			at, left := kadm.Offsets{}, int64(keep)
			ends.Each(func(o kadm.ListedOffset) { // one partition has all, as none has a key
				keep := min(left, o.Offset)
				left -= keep
				at.Add(kadm.Offset{Topic: subject, Partition: o.Partition, At: o.Offset - keep})
			})
			if _, err := adm.DeleteRecords(t.Context(), at); err != nil {
				t.Fatal(err)
			}
		},
		RecreateSubject: func(t testing.TB, subject string) {
			_, adm := admin(t, brokers)
			recreate(t, adm, subject)
		},
	}
	if protocol == "classic" { // members of the other cannot be thrown out
		h.DropGroup = func(t testing.TB, _ string) { dropGroup(t, brokers, group(t)) }
	}
	transporttest.Run(t, h)
}

// dropGroup throws a group's members out and deletes it.
func dropGroup(t testing.TB, brokers []string, group string) {
	t.Helper()
	cl, adm := admin(t, brokers)
	await(t, "deletion of the group "+group, func() bool {
		groups, err := adm.DescribeGroups(t.Context(), group)
		if err != nil {
			return false
		}
		leave := kmsg.NewPtrLeaveGroupRequest()
		leave.Group = group
		for _, m := range groups[group].Members {
			member := kmsg.NewLeaveGroupRequestMember()
			member.MemberID = m.MemberID
			leave.Members = append(leave.Members, member)
		}
		_, _ = leave.RequestWith(t.Context(), cl) // a member may have gone by itself
		_, err = adm.DeleteGroup(t.Context(), group)
		return err == nil
	})
}
