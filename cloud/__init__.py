"""What novacloud is made of: the cloud's rules, errors, login, addresses and volumes."""
