"""What every layer may use: errors, clocks, owned tasks. Nothing here knows what a model is."""
