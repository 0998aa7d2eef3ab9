"""One verb per file: `add_arguments(parser)` and `run(args)`; heavy imports inside `run`."""
