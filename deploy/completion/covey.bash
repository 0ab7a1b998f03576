# bash completion for covey; the candidates come from the program's own command table.
_covey() {
    local current word line=()
    current=${COMP_WORDS[COMP_CWORD]}
    mapfile -t line < <("${COMP_WORDS[0]}" __complete -- "${COMP_WORDS[@]:1:COMP_CWORD-1}" "$current" 2>/dev/null)
    COMPREPLY=()
    for word in "${line[@]}"; do
        COMPREPLY+=("$word")
    done
}
complete -o default -F _covey covey
