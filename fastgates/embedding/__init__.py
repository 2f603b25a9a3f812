"""Models inside other programs: streams, compiled code of users, C callbacks, C sources."""
