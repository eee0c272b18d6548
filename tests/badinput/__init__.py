"""What bad input gets: a catalogue as data files, run through Envoy and against the worker's own socket."""
