"""auto_LiRPA itself: made to run, its regions and calls made valid; nothing here knows our networks."""
