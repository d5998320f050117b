"""The output of a comparison or a study: tables, figures and reports."""
