package hudson.model

interface ItemGroup {
}
