package hudson.security

interface AccessControlled {
    ACL getACL()
}
