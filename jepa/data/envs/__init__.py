"""Gymnasium environments as a source of video: opening them, policies, and the state they are in."""
