package transport

import "github.com/wasmsidecar/wasmsidecar/pkg/job"

// What a message is written again for; the last argument of Moved.
const (
	MoveRetry    = "retry"
	MoveSchedule = "schedule"
	MoveRedrive  = "redrive"
)

// Moved makes the message that stands for orig, which j was decoded from, when it is written again: for another attempt, for
// later, or after its dead letter. It goes to orig's subject and keeps the job's identity. j.Attempt counts the executions made
// so far; for a redrive the caller has raised j.Generation and set j.Attempt to 0.
func Moved(orig *Message, j *job.Job, what string) *Message {
	return &Message{Subject: orig.Subject, Key: orig.Key, Body: orig.Body, Header: orig.Header}
}
