"""One hospital site. The data path, in the order in which to read it:

============= ============================ ===============================================================
step          module                       contract
============= ============================ ===============================================================
enrolment     `client.enrolment`           keys are made here; a certificate, a node and a directory come
                                           back, and nothing in it is approved by that
import        `client.patients.importers`  a hospital's export -> batches under pseudonyms; what cannot be
                                           read is listed, never dropped in silence;
                                           `client.patients.arrivals` says who comes and who has left
approval      `client.approvals`           which plans may run here, by digest, one person or two
processes     `client.daemon`              outbound proxy, SuperNode and worker, kept running
way out       `client.outbound`            SuperNode's connections, under the site's certificate
guard         `client.guard_app`,          stands under the name of every Flower program; runs no code of a
              `client.guard`               run, and lets in what the site's own files allow
worker        `client.worker_process`,     a plan is loaded once and answers many messages, each checked by
              `client.hosting`             the guard once more
site data     `client.loaded_plan`         yields patients, eyes and students of a plan
teacher       `client.teacher`             trained and used on site; no function hands its weights to
                                           another package
lessons       `client.lessons`             one teacher a site, for all of its tracks; `client.site_patients`
                                           says what reaches a student, `client.patients.withdrawals` who
                                           withdrew
pairs         `client.preferences`         teacher's ranking -> (prompt, chosen, rejected, margin), patient
                                           id kept for clipping; stored sealed
ORPO          `client.student`             pairs + adapter -> a local update, or under privacy a sum of
                                           patients' clipped gradients
budget        `client.budget`              what is taken from patients, in the ledger before it is taken
noise         `client.private_words`       the clipped sum and a share of the noise, modulo 2**b
fixed point   `client.contribution`        without privacy: adapter delta -> a vector modulo 2**b
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
`client.worker_link` takes a task from the one to the worker, which outlives it. Where a site's files lie,
`client.home` says. ``docs/walkthrough.md`` follows one patient through all of it.
"""
