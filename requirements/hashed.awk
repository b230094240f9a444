# Prints the requirements that the first file names, with the hashes that the other files have.
FNR == NR { name = $0; sub(/ \\$/, "", name); if (/^[a-z]/) wanted[name]; next }
/^[a-z]/ {
  name = $0
  hashed = sub(/ \\$/, "", name)
  take = hashed && (name in wanted) && !(name in taken)
  if (take) taken[name]
}
take
