"""pocketjenkins: a Jenkins on loopback, with nodes over ssh; see README.md."""
