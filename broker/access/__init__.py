"""Who may connect, and what they may do: passwords, access rules, bans, and the slowing down of those who guess."""
