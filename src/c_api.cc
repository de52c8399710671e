// The C interface (tactic/tactic.h).
