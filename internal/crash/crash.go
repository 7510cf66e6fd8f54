// Package crash names the places at which a test build of the command can be told to die, as by SIGKILL, so that tests see what a
// crash there leaves behind. Without the build tag crash its only function is empty, and nothing can be told.
package crash

// Point is a place in the life of a job, or of the process.
type Point string

// The points. Each is passed once for each job, except DuringDrain.
const (
	AfterClaim   Point = "after-claim"   // the job is claimed and has not run
	AfterRun     Point = "after-run"     // it has run and its outcome is not recorded
	AfterRecord  Point = "after-record"  // it is recorded and nothing is published
	AfterPublish Point = "after-publish" // its result is published, and neither a reply nor a dead letter
	BeforeSettle Point = "before-settle" // all its outputs are out and its message is not settled
	DuringDrain  Point = "during-drain"  // SIGTERM has come, and what has not begun was handed back
)

// Points returns all of them.
func Points() []Point {
	return []Point{AfterClaim, AfterRun, AfterRecord, AfterPublish, BeforeSettle, DuringDrain}
}

// Env is the environment variable by which a test build is told where to die once it has had SIGUSR1: a point, a colon, and how many
// times it is passed before, for instance "after-run:17". DuringDrain needs no SIGUSR1.
const Env = "WASMSIDECAR_CRASH"
