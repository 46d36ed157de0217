"""Videos: facts about a file, decoding by three backends, clips, and a pool that outlives its decoders."""
