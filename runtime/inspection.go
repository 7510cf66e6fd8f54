package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Inspection is what can be told of a module before it has a job. Its JSON is what wasmsidecar inspect prints.
type Inspection struct {
	Size   int    `json:"size"`   // bytes
	Digest string `json:"sha256"` // lower-case hex
	Name   string `json:"name,omitempty"`

	ABI ABI `json:"abi,omitempty"` // empty: none that is known
	// Why tells which imports and exports decided the ABI, or what a module without one lacks.
	Why string `json:"why"`
	// Function is the export that an Extism plug-in is called by when its configuration names none.
	Function string `json:"function,omitempty"`
	// Problem is why the module cannot run although it has an ABI; empty when it can.
	Problem string `json:"problem,omitempty"`

	Imports      []Func       `json:"imports"`
	Exports      []Func       `json:"exports"`
	Capabilities []Capability `json:"capabilities"`
	Memory       *MemoryNeeds `json:"memory,omitempty"` // nil: it has none

	// Isolation is what the module gets when its configuration asks for reset: reset, or fresh where it cannot be reset, and
	// NotReset says why not.
	Isolation Isolation `json:"isolation,omitempty"`
	NotReset  string    `json:"not_reset,omitempty"`
	// Frozen says whether the program goes on from its first read in each job, and NotFrozen why not. Freezable is set when
	// isolation: frozen would have it do so all the same.
	Frozen    bool   `json:"frozen"`
	NotFrozen string `json:"not_frozen,omitempty"`
	Freezable bool   `json:"freezable,omitempty"`

	Producers []Producer `json:"producers,omitempty"`
	Sections  []Section  `json:"custom_sections,omitempty"`
}

// Runs reports whether jobs can be given to the module.
func (i *Inspection) Runs() bool { return i.ABI != "" && i.Problem == "" }

// MemoryNeeds are the bounds of a module's own memory, in bytes.
type MemoryNeeds struct {
	Min int64 `json:"min"`
	Max int64 `json:"max,omitempty"` // 0: none of its own, so that limits.memory alone holds
}

// trialTime bounds the run that shows whether a program can be frozen.
const trialTime = 2 * time.Second

// Inspect tells what a module is. An error says why the bytes are no module, or none that this engine could run whatever its
// configuration; what stands in the way of one that is well made is in the Inspection. Nothing in the module is run, except that
// a program is run once, without input and with nothing granted, to see where it would be frozen. Inspect may be called by many
// goroutines.
func (e *Engine) Inspect(ctx context.Context, wasm []byte) (*Inspection, error) {
	sum := sha256.Sum256(wasm)
	i := &Inspection{Size: len(wasm), Digest: hex.EncodeToString(sum[:]), Imports: []Func{}, Exports: []Func{}, Capabilities: []Capability{}}
	cfg := ModuleConfig{Name: "inspected", Wasm: wasm}
	c, err := e.compile(ctx, codeKey{digest: i.Digest, pages: maxPages, interpreter: true}, cfg) // which is quick to compile
	if err != nil {
		return nil, err
	}
	defer e.release(c)
	i.custom(wasm)
	i.Imports, i.Exports = append(i.Imports, c.imports...), append(i.Exports, c.exports...)
	i.Capabilities = append(i.Capabilities, capabilitiesOf(c.imports)...)
	if own := c.rewritten.Memory; own != nil {
		i.Memory = &MemoryNeeds{Min: int64(own.Min) * pageSize}
		if own.Max < maxPages {
			i.Memory.Max = int64(own.Max) * pageSize
		}
	}
	if i.ABI, i.Why, err = Classify(c.imports, c.exports); err != nil {
		i.Why = err.Error()
		return i, nil
	}
	m := &Module{code: c, abi: i.ABI}
	if m.driver, err = driverOf(i.ABI, "", c.exports); err == nil {
		err = m.driver.fits(c.exports, c.exported)
	}
	if err == nil {
		err = c.link(ctx, i.ABI)
	}
	if x, ok := m.driver.(extism); ok {
		i.Function = x.function
	}
	if err != nil {
		i.Problem = err.Error()
		return i, nil
	}
	if i.Isolation, i.NotReset = IsolationReset, m.unfit(); i.NotReset != "" {
		i.Isolation = IsolationFresh
	}
	return i, e.tryFreezing(ctx, i, cfg)
}

// tryFreezing finds out whether a program is frozen, by running it.
func (e *Engine) tryFreezing(ctx context.Context, i *Inspection, cfg ModuleConfig) error {
	if i.ABI != ABICommand {
		i.NotFrozen = "only programs (abi command) are"
		return nil
	}
	if i.Isolation != IsolationReset {
		i.NotFrozen = "it cannot be reset"
		return nil
	}
	cfg.Limits = DefaultLimits()
	cfg.Limits.Time = trialTime
	if i.Memory != nil {
		cfg.Limits.Memory = max(cfg.Limits.Memory, i.Memory.Min)
	}
	why, err := e.freezes(ctx, cfg)
	if err != nil {
		return err
	}
	if i.Frozen = why == ""; i.Frozen {
		return nil
	}
	i.NotFrozen = why
	cfg.Isolation = IsolationFrozen
	why, err = e.freezes(ctx, cfg)
	i.Freezable = why == ""
	return err
}

// freezes runs a program without input and says why it was not frozen; empty when it was.
func (e *Engine) freezes(ctx context.Context, cfg ModuleConfig) (why string, err error) {
	m, err := e.Load(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, m.Close(ctx)) }()
	_, failed := m.Run(ctx, &job.Job{ID: "inspect", Module: cfg.Name, Attempt: 1})
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	p, ok := m.instances.(*pool)
	if !ok {
		return "it cannot be reset", nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.halted != nil:
		return "", nil
	case p.thawed != nil:
		return p.thawed.Error(), nil
	case failed != nil:
		return fmt.Sprintf("it ended before it read its job: %v", failed), nil
	}
	return "it does not read stdin", nil
}

// Section is a custom section of a module.
type Section struct {
	Name string `json:"name"`
	Size int    `json:"size"` // bytes, its name not counted
}

// Producer is one entry of the producers section: a language, a tool or an SDK that made the module.
type Producer struct {
	Field   string `json:"field"` // language, processed-by or sdk
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
}

// maxProducers bounds what is believed of a producers section.
const maxProducers = 64

// custom takes down the custom sections. They do not matter to any engine, so that what cannot be read is left out.
func (i *Inspection) custom(wasm []byte) {
	r := reader{b: wasm[8:]}
	for len(r.b) > 0 && !r.bad {
		id := r.byte()
		body := reader{b: r.take(r.u32())}
		if id != 0 || r.bad {
			continue
		}
		name := body.name()
		if body.bad {
			continue
		}
		i.Sections = append(i.Sections, Section{name, len(body.b)})
		switch name {
		case "name":
			if body.byte() == 0 { // the module's own, which comes first
				module := reader{b: body.take(body.u32())}
				i.Name = module.name()
			}
		case "producers":
			i.Producers = producers(body)
		}
	}
}

// producers reads a producers section as far as it is well made.
func producers(body reader) []Producer {
	var out []Producer
	for range body.u32() {
		field := body.name()
		for range body.u32() {
			p := Producer{field, body.name(), body.name()}
			if body.bad || len(out) == maxProducers {
				return out
			}
			out = append(out, p)
		}
		if body.bad {
			return out
		}
	}
	return out
}

// name reads a name and makes it fit to be shown.
func (r *reader) name() string {
	return strings.TrimSpace(job.CleanText(string(r.take(r.u32()))))
}
