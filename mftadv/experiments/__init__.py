"""The paper's claims, each a small composition of the stages above."""
