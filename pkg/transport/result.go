package transport

import "github.com/wasmsidecar/wasmsidecar/pkg/job"

// Result makes the message that carries o to subject, success or failure, in envelope e. The same job and outcome always give
// the same message, to the byte.
func Result(j *job.Job, o *job.Outcome, e Envelope, subject string) *Message {
	return &Message{Subject: subject, Key: []byte(j.Key), Body: o.Body}
}
