"""One hospital site. The data path, in the order in which to read it:

============= ============================ ===============================================================
step          module                       contract
============= ============================ ===============================================================
site data     `client.patients`            yields `PatientRecord`s; nothing else opens a patient file; what
                                           cannot be read is listed, never dropped in silence
teacher       `client.teacher`             trained and used on site; no function hands its weights to
                                           another package
pairs         `client.preferences.pairs`   teacher's ranking -> (prompt, chosen, rejected, margin), patient
                                           id kept for clipping
ORPO          `client.student`             pairs + adapter -> a local update
fixed point   `client.contribution`        adapter delta -> a vector modulo 2**b
aggregate     `server.aggregate`           sum of survivors -> mean -> server optimizer -> next adapter
evaluation    `client.student.evaluate`,   only counts leave, inside a sum
              `server.evaluation`
============= ============================ ===============================================================

Not on the path in this version: clinicians' ratings of pairs, noise and masks on a contribution, the
privacy budget, the registry of released students, serving. A plan says so: its aggregation mode is
``clear`` and its privacy ``none``.

The outermost modules are `client.app`, which Flower starts, and `client.cli`, which people start.
"""
