"""sidrec turns a catalogue and an interaction log into a generative recommender."""
