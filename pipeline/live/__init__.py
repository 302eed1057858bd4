"""Live cameras: newest frame first, reconnecting for ever, none held up by another."""
