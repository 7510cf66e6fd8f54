package transport

import (
	"strconv"
	"strings"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// What a message is written again for; the last argument of Moved.
const (
	MoveRetry    = "retry"
	MoveSchedule = "schedule"
	MoveRedrive  = "redrive"
)

// Moved makes the message that stands for orig, which j was decoded from, when it is written again: for another attempt, for
// later, or after its dead letter. It goes to orig's subject and keeps the job's identity: id, key, correlation id, reply
// subject (in the header Reply-To) and body. A relative delay becomes the absolute time that it means.
//
// j.Attempt counts the executions made so far; for a redrive the caller has raised j.Generation and set j.Attempt to 0. The
// same move of the same delivery always gives the same message, so that a broker which knows Nats-Msg-Id drops the second.
func Moved(orig *Message, j *job.Job, what string) *Message {
	m := &Message{Subject: orig.Subject, Key: keyOf(orig, j), Body: orig.Body}
	moved := strconv.Itoa(j.Generation) + "." + strconv.Itoa(j.Attempt)
	h := make(job.Header, 0, len(orig.Header)+7)
	redrive := what == MoveRedrive
	carry(&h, orig, j, func(name string) bool {
		return ofMove(name) || strings.EqualFold(name, HeaderDelay) || strings.EqualFold(name, HeaderDeliverAt) ||
			redrive && ofDeadLetter(name)
	})
	if !redrive && !j.NotBefore.IsZero() {
		h.Add(HeaderDeliverAt, j.NotBefore.UTC().Format(time.RFC3339Nano))
	}
	id := moveID(j, j.Attempt, what)
	if orig.Header.Get(HeaderMoved) == moved {
		// This message is itself such a move, which came too early. With the same id the broker would drop it as a repeat.
		id += "@" + job.CleanText(j.Source)
	}
	h.Add(HeaderJobID, j.ID)
	h.Add(HeaderMsgID, id)
	h.Add(HeaderMoved, moved)
	h.Add(HeaderAttempt, strconv.Itoa(j.Attempt))
	m.Header = h
	return m
}

// moveID names one move of a job, for a broker's deduplication.
func moveID(j *job.Job, attempt int, what string) string {
	return j.ID + "/" + j.Route + "/" + strconv.Itoa(j.Generation) + "." + strconv.Itoa(attempt) + "/" + what
}

// carry copies orig's headers to h, without those that drop names. What a broker would obey is renamed, or left out where a
// sidecar or the broker wrote it with an earlier move or dead letter. The reply subject and the correlation id become headers.
func carry(h *job.Header, orig *Message, j *job.Job, drop func(name string) bool) {
	again, reply, correlation := j.Moved || orig.Header.Get(HeaderDeadKind) != "", false, false
	for _, f := range orig.Header {
		switch {
		case hasPrefixFold(f.Name, "Nats-"):
			if again {
				continue
			}
			f.Name = HeaderWas + f.Name
		case strings.EqualFold(f.Name, HeaderReplyTo):
			reply = true
		case strings.EqualFold(f.Name, HeaderCorrelation), strings.EqualFold(f.Name, HeaderCorrelationWM):
			correlation = true
		case strings.EqualFold(f.Name, HeaderJobID), drop(f.Name):
			continue
		}
		*h = append(*h, f)
	}
	if !reply && orig.ReplyTo != "" {
		h.Add(HeaderReplyTo, orig.ReplyTo)
	}
	if !correlation {
		addText(h, HeaderCorrelation, j.CorrelationID)
	}
}

// ofMove says whether an earlier move has written the header.
func ofMove(name string) bool {
	return strings.EqualFold(name, HeaderMoved) || strings.EqualFold(name, HeaderAttempt)
}

// keyOf is the key under which orig is written again.
func keyOf(orig *Message, j *job.Job) []byte {
	if orig.Key == nil && j.Key != "" {
		return []byte(j.Key)
	}
	return orig.Key
}
