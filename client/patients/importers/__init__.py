"""Patients' files to records: a site's own folder, tiles, phenopackets, FHIR exports, and phenopacket-store.

Every importer returns a `PatientSet`: records, and one clear line for each thing that could not be read.
An object with a problem gives no record; nothing is repaired, changed in place or dropped in silence.
`client.patients.importers.sources` picks the importer of a folder.
"""
