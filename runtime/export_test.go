package runtime

// Idle returns how many jobs each instance of m has had that waits for another.
func Idle(m *Module) []int {
	p, ok := m.instances.(*pool)
	if !ok {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	jobs := []int{}
	for _, i := range p.idle {
		jobs = append(jobs, i.in.jobs)
	}
	return jobs
}

// Frozen returns how many of those instances go on from where their program was frozen.
func Frozen(m *Module) int {
	n := 0
	p := m.instances.(*pool)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range p.idle {
		if i.in.frozen != nil {
			n++
		}
	}
	return n
}

// RaceEnabled says whether the race detector watches.
const RaceEnabled = raceEnabled

// MaxCrashes is after how many crashes an instance is not used again.
const MaxCrashes = maxCrashes

// Copies says whether this system puts only small memories back, so that large instances are not used again.
func Copies(e *Engine) bool { return e.means().memories.most() == maxCopied }
