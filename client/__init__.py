"""One hospital site. The data path, in the order in which to read it:

============= ============================ ===============================================================
step          module                       contract
============= ============================ ===============================================================
site data     `client.patients`            yields `PatientRecord`s; nothing else opens a patient file; what
                                           cannot be read is listed, never dropped in silence
teacher       `client.teacher`             trained and used on site; no function hands its weights to
                                           another package
lessons       `client.lessons`             one teacher a site, for all of its tracks; `client.site_patients`
                                           says what reaches a student
pairs         `client.preferences.pairs`   teacher's ranking -> (prompt, chosen, rejected, margin), patient
                                           id kept for clipping
ORPO          `client.student`             pairs + adapter -> a local update
fixed point   `client.contribution`        adapter delta -> a vector modulo 2**b
masks         `client.session`             every request checked against the site's own plan and identities;
                                           the vector leaves masked, and each stage is answered once
aggregate     `server.aggregate`           sum of survivors -> mean -> server optimizer -> next adapter
evaluation    `client.student.evaluate`,   only counts leave, inside a sum
              `server.evaluation`
============= ============================ ===============================================================

The coordinator sees only the sum of the sites' updates (aggregation mode ``secagg-v1``), with noise in it
where the plan promises something to patients. Not on the path in this version: clinicians' ratings of pairs,
the registry of released students, serving.

The outermost modules are `client.app`, which Flower starts, and `client.cli`, which people start;
`client.worker_link` takes a task from the one to the worker, which outlives it.
"""
