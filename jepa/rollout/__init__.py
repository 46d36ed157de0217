"""Trust in imagination: how a world model's roll-outs compare with what really happened on held-out episodes."""
