"""Child processes: started, spoken to, stopped, and their death said in one sentence."""
