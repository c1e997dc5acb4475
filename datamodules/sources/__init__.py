"""Readers of data sets in other formats, one file per format; each is an `ai_wam.episodes.EpisodeSource`."""
