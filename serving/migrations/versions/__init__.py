"""One module a version of the store. What has been released is never edited: a change of the tables is a further module."""
