"""Writers of other projects' layouts."""
