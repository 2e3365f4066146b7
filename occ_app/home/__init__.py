"""The files under the home folder."""
