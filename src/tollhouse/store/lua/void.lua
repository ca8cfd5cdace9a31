-- Nothing of the holds in ARGV is held any more. Returns 1.

for i = 1, #ARGV do
  release(ARGV[i])
end
return 1
