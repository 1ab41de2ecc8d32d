"""The tables of the list of jobs, and how they are written and pruned."""

from __future__ import annotations

from app.jobs.rows import COLUMNS

FORM = 1
MAX_KEPT, MAX_KEPT_PASSING = 200, 50
"""Of how many jobs that have ended is remembered; of each owner the last one is, too."""
MAX_OWNERS = 200
TABLES = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, owner TEXT NOT NULL, client TEXT NOT NULL,
    payload TEXT NOT NULL, state TEXT NOT NULL, priority INTEGER NOT NULL, position REAL NOT NULL,
    created REAL NOT NULL, started REAL, ended REAL, progress TEXT NOT NULL, result TEXT NOT NULL,
    error TEXT, grace REAL, passing INTEGER NOT NULL, interruptions INTEGER NOT NULL,
    resumed INTEGER NOT NULL
);
CREATE INDEX jobs_owner ON jobs (owner, ended);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE timings (key TEXT PRIMARY KEY, seconds REAL NOT NULL, at REAL NOT NULL);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY, verb TEXT NOT NULL, job TEXT NOT NULL, value TEXT NOT NULL,
    answer TEXT, refused INTEGER, at REAL NOT NULL
);
"""
SAVE = (
    f"INSERT OR REPLACE INTO jobs ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
)
ENDED = "(state NOT IN ('waiting', 'running'))"
PRUNE = f"""
DELETE FROM jobs WHERE {ENDED}
    AND id NOT IN (SELECT id FROM jobs WHERE {ENDED} AND NOT passing
                   ORDER BY ended DESC LIMIT {MAX_KEPT})
    AND id NOT IN (SELECT id FROM jobs WHERE {ENDED} AND passing
                   ORDER BY ended DESC LIMIT {MAX_KEPT_PASSING})
    AND id NOT IN (SELECT id FROM (SELECT id, max(ended) AS last FROM jobs
                                   WHERE {ENDED} AND NOT passing GROUP BY owner, kind
                                   ORDER BY last DESC LIMIT {MAX_OWNERS}))
"""
