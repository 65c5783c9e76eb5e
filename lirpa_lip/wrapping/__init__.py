"""From a user's model to auto_LiRPA's graph of it: the prepared trace, and bound classes of our own."""
