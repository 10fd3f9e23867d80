"""How every command begins and ends: arguments, one writer at a time, one message, no secrets, no orphans."""
