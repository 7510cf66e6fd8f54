package transporttest

import (
	"testing"
	"time"
)

// Run runs the suite. Its cases run in parallel, but the test that calls it must not: the first case counts goroutines. Cases
// about hooks that the harness does not have are left out.
func Run(t *testing.T, h Harness) {
	if h.Lease == 0 {
		h.Lease = 2 * time.Second
	}
	if h.Slack == 0 {
		h.Slack = 10 * time.Second
	}
	s := &suite{h}
	t.Run("NoGoroutineLeft", s.noGoroutineLeft) // alone, because it counts goroutines
	cases := []struct {
		name  string
		run   func(t *testing.T)
		holds bool
	}{
		{"ForeignRecord", s.foreignRecord, true},
		{"PoisonAmongForeignRecords", s.poison, true},
		{"HeadersAndBodies", s.headersAndBodies, true},
		{"FetchLimit", s.fetchLimit, true},
		{"SettleOutOfOrder", s.settleOutOfOrder, true},
		{"HeadOfLine", s.headOfLine, true},
		{"UnsettledComesBackAfterClose", s.unsettledAfterClose, true},
		{"UnsettledComesBackAfterAbandonment", s.unsettledAfterAbandonment, true},
		{"ExtendOutlivesLease", s.extendOutlivesLease, true},
		{"ReleaseComesBack", s.releaseComesBack, true},
		{"DeadIsSettled", s.deadIsSettled, true},
		{"NothingLost", s.nothingLost, true},
		{"SourceAddedAndRemoved", s.addRemove, true},
		{"KeyHasOneOwner", s.keyHasOneOwner, true},
		{"SoleTakesOver", s.soleTakesOver, true},
		{"RetryWhenDue", s.retryWhenDue, true},
		{"RetryOfForeignNatsHeaders", s.retryForeignHeaders, true},
		{"RetryOfPublishedMsgID", s.retryMsgID, true},
		{"SameMoveTwice", s.sameMoveTwice, true},
		{"MoveOfAMove", s.moveOfAMove, true},
		{"RetryOfLargest", s.retryOfLargest, true},
		{"RetryFails", s.retryFails, true},
		{"PublishConcurrently", s.publishConcurrently, true},
		{"OrderWithinKey", s.orderWithinKey, true},
		{"TooLarge", s.tooLarge, true},
		{"IllegalSubject", s.illegalSubject, true},
		{"TooLargeAmongOthers", s.tooLargeAmongOthers, true},
		{"LetterOfManyHeaders", s.letterOfManyHeaders, true},
		{"HeaderInjection", s.headerInjection, true},
		{"PrepareTogether", s.prepareTogether, true},
		{"ManyDelayed", s.manyDelayed, true},
		{"ManyOut", s.manyOut, true},
		{"StaleOwner", s.staleOwner, true},
		{"TailFromStart", s.tailFromStart, true},
		{"TailFromNow", s.tailFromNow, true},
		{"BrowseAndDiscard", s.browseAndDiscard, true},
		{"Depth", s.depth, true},
		{"Wildcards", s.wildcards, true},
		{"CloseWakesFetch", s.closeWakesFetch, true},
		{"CloseInTime", s.closeInTime, true},
		{"CloseTwice", s.closeTwice, true},
		{"FetchEndsWithContext", s.fetchEndsWithContext, true},
		{"Ping", s.ping, true},
		{"TrimmedBeforeRead", s.trimmedBeforeRead, h.Trim != nil},
		{"GroupDeleted", s.groupDeleted, h.DropGroup != nil},
		{"SubjectRecreated", s.subjectRecreated, h.RecreateSubject != nil},
		{"JointEnd", s.jointEnd, h.Beside != nil},
		{"JointRefused", s.jointRefused, h.Beside != nil},
		{"JointResultRefused", s.jointResultRefused, h.Beside != nil},
		{"JointUnable", s.jointUnable, h.Beside != nil},
		{"JointMany", s.jointMany, h.Beside != nil},
		{"Measured", s.measured, h.OpenCuttable != nil},
		{"NetworkCut", s.networkCut, h.OpenCuttable != nil},
	}
	for _, c := range cases {
		if c.holds {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.run(t)
			})
		}
	}
}
