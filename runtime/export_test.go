package runtime

// Idle returns how many jobs each instance of m has had that waits for another.
func Idle(m *Module) []int {
	p, ok := m.instances.(*pool)
	if !ok {
		return nil
	}
	jobs := []int{}
	for _, in := range p.waiting() {
		jobs = append(jobs, in.jobs)
	}
	return jobs
}

// waiting returns the instances that wait for a job.
func (p *pool) waiting() []*instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*instance
	for _, i := range p.idle {
		all = append(all, i.in)
	}
	p.seats.mu.Lock()
	defer p.seats.mu.Unlock()
	for _, s := range p.seats.row {
		if s.free.Load() {
			all = append(all, s.in.Load())
		}
	}
	return all
}

// Frozen returns how many of those instances go on from where their program was frozen.
func Frozen(m *Module) int {
	n := 0
	for _, in := range m.instances.(*pool).waiting() {
		if in.frozen != nil {
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
