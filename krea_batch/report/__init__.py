"""What a run leaves for people to look at: results now; gallery and exports beside it."""
