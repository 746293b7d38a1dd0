"""How loss falls with compute: ladders of sizes, fits, leverage with tested intervals, predictions."""
