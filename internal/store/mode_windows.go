package store

// ownersAlone: modes say nothing on Windows; the state directory inherits the access list of the folder that it is in.
const ownersAlone = false
