package rewrite

// module is a parsed module.
type module struct {
	wasm []byte
}

func parse(wasm []byte) (*module, error) {
	return &module{wasm: wasm}, nil
}

func (m *module) rewrite(Options) (*Module, error) {
	return nil, &Error{Func: -1, What: "metering is not there yet", Err: ErrUnsupported}
}

func (m *module) withImage(uint32) ([]byte, error) {
	return nil, &Error{Func: -1, What: "images are not there yet", Err: ErrUnsupported}
}
