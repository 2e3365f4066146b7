"""The checks of `occ doctor`: each looks at one thing and returns findings with the next step for a person."""
