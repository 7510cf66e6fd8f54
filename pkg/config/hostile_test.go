package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Files that are made to cost much are refused, in few words and without taking the square of their size in time.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	const full = 128 << 10
	var keys strings.Builder
	for i := 0; keys.Len() < full; i++ {
		fmt.Fprintf(&keys, "brokes%d: 1\n", i)
	}
	var manyKeys strings.Builder
	for i := range 5_000 {
		fmt.Fprintf(&manyKeys, "  m%d: {source: x, abi: comand}\n", i)
	}
	for name, data := range map[string]string{
		"unknown keys":    keys.String(),
		"open brackets":   strings.Repeat("[", full),
		"open lines":      "a: [\n" + strings.Repeat("b,\n", full/3),
		"error at end":    strings.Repeat("a: b\n", full/5) + " x: [",
		"error at begin":  "a: [}\n" + strings.Repeat("a: b\n", full/5),
		"deep":            strings.Repeat("- ", 5000),
		"deep mapping":    strings.Repeat("{a: ", 9000),
		"aliases":         "routes:\n- &r {from: a}\n" + strings.Repeat("- *r\n", full/5),
		"aliases of size": "routes:\n- &r {reply: [" + strings.Repeat("x,", full/4) + "]}\n" + strings.Repeat("- *r\n", full/5),
		"many routes":     "routes:\n" + strings.Repeat("- {from: a.b.c.d.e, module: m}\n", full/32),
		"many modules":    "modules:\n" + manyKeys.String(),
		"routes":          "routes:\n" + strings.Repeat("-\n", full/2),
		"long value":      "transport: " + strings.Repeat("kafka", full/5),
		"long key":        strings.Repeat("kafka", full/5) + ": 1",
		"variables":       "transport: \"" + strings.Repeat("${N}", full/4) + "\"",
		"too large":       strings.Repeat("x", MaxFileSize+1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			_, err := Parse("f.yaml", []byte(data), testEnv)
			if err == nil || len(err.Error()) > (maxMistakes+2)*(maxText+100) {
				t.Fatalf("taken, or refused at length: %.200v", err)
			}
			t.Logf("%s: %.120v", time.Since(begin), err)
		})
	}
}
