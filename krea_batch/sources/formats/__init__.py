"""The formats of job files.

line_file      lines of any length, also compressed, with their positions
encoding       converts text to UTF-8 with LF as line end
jsonl          a JSON object per line
text           a prompt per line, or per file
tables         rows of CSV, TSV and other tables
cells          the cells of CSV and TSV files
sheet          a sheet of a workbook
json_document  a JSON array or object
yaml_document  a YAML list or mapping
markdown       the list items of a Markdown file
renamed_keys   takes fields from the keys that options name
parquet        Parquet, and Arrow files of the datasets library
unread         recognises formats that are not read, and says what to do instead
spool          copies what can be read only once, such as standard input
"""
