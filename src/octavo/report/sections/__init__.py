"""The sections of a report: functions from `octavo.report.inputs.Inputs` to paragraphs, tables and figures."""
